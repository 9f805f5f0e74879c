"""The metrics: plain functions from frames, faces or face vectors to a Score; `catalogue` says what each means."""
