"""How good a model is: images found again among all others, and enlarged ones beside the true."""
