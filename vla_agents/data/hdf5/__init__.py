"""HDF5: our own layout, and those of ALOHA, robomimic, LIBERO and groups in one file."""
