"""Wire protocols of motors: half-duplex serial buses of servos. Each is usable without the rest of the library."""
