"""Asking people which of two models' images they prefer: sheets, a local page, the analysis."""
