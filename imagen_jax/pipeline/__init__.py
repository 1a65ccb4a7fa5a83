"""What a user holds: loading a model, what a caller asks for, and the images that come of it."""
