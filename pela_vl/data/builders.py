"""Which data_prep script builds which list, for the error about a missing list."""

import os
import re

# by the list's name, as the scripts write it; docs/data.md has the whole commands
_SCRIPTS = (
    (r"vqa_\w+|vg_qa|answer_list", "build_vqa.py"),
    (r"(refcoco\+|refs)_(train|val|test|boxes)", "build_refcoco_plus.py"),
    (r"snli_ve_(train|dev|test)", "build_snli_ve.py"),
    (r"own_(train|val|test|pretrain)", "build_own.py"),
    (r"photographs_(train|val|test)", "build_photographs.py"),
    (r"coco|vg|cc3m_train|cc3m_val|cc12m|sbu", "build_pretrain_corpus.py"),
    (r"[\w-]+_(train|val|test|pretrain)", "build_retrieval.py"),
)


def how_to_build(path: str) -> str:
    """The end of an error message about a missing list: which script builds it.

    Empty for a file that exists, and for a name that no script writes.
    """
    if os.path.exists(path):
        return ""
    name = os.path.basename(path).removesuffix(".json")
    script = next((script for pattern, script in _SCRIPTS if re.fullmatch(pattern, name)), None)
    return f"; data_prep/{script} builds it, see docs/data.md" if script else ""
