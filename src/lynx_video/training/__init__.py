"""Training: from a folder of clips to adapters, packed, from two CPU cores to a cluster."""
