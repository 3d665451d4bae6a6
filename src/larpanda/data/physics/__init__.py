"""The physics of the generator, one subject a file. Compiled by numba when it is first used, not when imported."""
