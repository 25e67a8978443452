"""What other programs did when they were given the same input, recorded; and the scripts that recorded it."""
