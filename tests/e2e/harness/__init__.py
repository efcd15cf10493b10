"""What the end-to-end tests stand on: the two servers, their processes, and what reached the stand-in."""
