"""Making a training set: clips and pictures with captions in, shards out, with everything that was dropped named in its card."""
