"""Speed and memory of this code and its peers, side by side on the devices that are there."""
