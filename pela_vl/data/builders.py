"""Which data_prep script builds which list or folder, for the error about a missing one."""

import os
import re

# by the end of the list's path, as the scripts and docs/data.md write it; the latter has the whole commands
_SCRIPTS = (
    (r"scenes_ade/lists/\w+", "build_scenes_segmentation.py"),
    (r"scenes_coco/(train|val)", "build_scenes_detection.py"),
    (r"coco_detection/(train|val)", "build_coco_detection.py"),
    (r"imagenet/(train|val)", "build_imagenet.py"),
    (r"objects\w*/(\w+/)?(train|val|test)", "build_objects.py"),
    (r"vqa_\w+|vg_qa|answer_list", "build_vqa.py"),
    (r"(refcoco\+|refs)_(train|val|test|boxes)", "build_refcoco_plus.py"),
    (r"snli_ve_(train|dev|test)", "build_snli_ve.py"),
    (r"own_(train|val|test|pretrain)", "build_own.py"),
    (r"photographs_(train|val|test)", "build_photographs.py"),
    (r"ade20k_\w+", "build_ade20k.py"),
    (r"corpus|coco|vg|cc3m_train|cc3m_val|cc12m|sbu", "build_pretrain_corpus.py"),
    (r"[\w-]+_(train|val|test|pretrain)", "build_retrieval.py"),
)


def how_to_build(path: str) -> str:
    """The end of an error message about a missing list or folder: which script builds it.

    Empty for a file that exists, and for a name that no script writes.
    """
    if os.path.exists(path):
        return ""
    name = os.path.normpath(path).removesuffix(".json")
    script = next((script for pattern, script in _SCRIPTS if re.search(f"(^|/)({pattern})$", name)), None)
    return f"; data_prep/{script} builds it, see docs/data.md" if script else ""
