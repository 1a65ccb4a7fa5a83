"""How good a model is: pictures found again among all others, and enlarged ones beside the true."""
