"""StarVLA's checkpoints: read, converted, compared with what StarVLA computes from them."""
