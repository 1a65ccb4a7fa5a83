"""How good a model is: FID, KID, CMMD, CLIP score, retrieval, PSNR and SSIM, with a report."""
