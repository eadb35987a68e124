"""Decode once: pictures at the size a policy sees them, kept on disk."""
