"""Any picture file as 8 bit sRGB, and back."""
