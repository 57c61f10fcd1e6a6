"""What the suffix of a file says: which files are images, and which are archives of them."""

IMAGE_FORMATS = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **{".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"},
}
"""Format of an image file, as PIL calls it, by suffix."""

IMAGES = tuple(IMAGE_FORMATS)

ARCHIVES = (".tar", ".zip")
