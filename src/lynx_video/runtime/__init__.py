"""How a model is held and run: kernels, compilation, memory, caches, processes. Verbs on stock modules; each can be left out."""
