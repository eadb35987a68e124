"""Devices that are not there: emulators which speak the real wire protocols."""
