"""kvtier: a multilevel read-through page cache, from GPU memory to a remote backend."""
