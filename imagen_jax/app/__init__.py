"""A web page to play with: images from text, edits, inpainting and upscaling, on Gradio."""
