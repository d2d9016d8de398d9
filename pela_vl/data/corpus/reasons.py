"""Names of all reasons for leaving out an image or a caption, and of all irregularities that are mended."""

IMAGES = {
    "malformed_entry": "the raw file's entry lacks a field or has one of the wrong type",
    "unknown_image": "captions of an image id that the raw file does not describe",
    "path_outside_root": "the image's path leaves the folder of images",
    "download_failed": "the downloader's table says that there is no image",
    "other_download": "what lies beside the image names another address than the table of captions",
    "no_caption": "the raw file has no caption of the image",
    "no_caption_left": "none of its captions passes the filters",
    "missing": "no file where the image should be",
    "empty_file": "zero bytes",
    "html_page": "a web page under an image's name",
    "not_a_picture": "no format that can be decoded",
    "truncated": "the file ends before the image does",
    "decompression_bomb": "more pixels than an image has, or text that inflates without bound",
    "damaged": "the decoder fails in another way",
    "too_small": "the shorter side is below min_side pixels",
    "extreme_aspect": "the longer side is more than max_aspect times the shorter",
    "held_out_id": "known to be an image of a test or validation set by its number or name",
    "held_out_content": "has the pixels of an image of a test or validation set",
    "duplicate_id": "the id was taken before in this source",
    "duplicate_content": "an image with the same pixels was taken before",
}
CAPTIONS = {
    "not_text": "null, a number or anything else that is no text",
    "not_utf8": "bytes that are no UTF-8, or half a surrogate pair",
    "empty": "no word is left after cleaning",
    "too_short": "fewer than min_words words",
    "too_long": "more than max_words words",
    "small_region": "its region covers less than min_region_area of the image",
    "repeated": "the same words as an earlier caption of the image",
    "with_picture": "a fit caption whose image was dropped",
}
MENDED = {
    "cmyk": "CMYK turned into RGB",
    "palette_transparency": "a palette with transparency laid over white",
    "transparency": "transparency laid over white",
    "sixteen_bit": "more than 8 bits a channel scaled to 8",
    "animation": "the first frame of an animation",
    "exif_rotation": "turned upright by its EXIF orientation",
    "blank_in_name": "a path with blanks",
    "unicode_name": "a path with characters beyond ASCII",
}
