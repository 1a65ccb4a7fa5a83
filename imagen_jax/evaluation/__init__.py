"""How good a model is: FID, KID, CMMD, CLIP score, PSNR, SSIM, and a benchmark of icons."""
