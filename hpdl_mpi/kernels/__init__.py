"""Numba-compiled functions on arrays. They know arrays and nothing else; no other room imports numba.

A kernel writes into arrays that its caller owns and allocates nothing. Its names say what it reads and writes;
batches come first, channels last. Every kernel is compiled on first use and kept in the cache of `jit.cache_folder`.
"""
