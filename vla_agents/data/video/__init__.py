"""Pictures to video and back, frame by frame."""
