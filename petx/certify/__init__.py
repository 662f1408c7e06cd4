"""On a GPU the CUDA kernels work by default, because each card certifies them first."""
