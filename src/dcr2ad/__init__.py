"""dcr2ad: anomaly detection with multimodal language models that route, and reason under, defect knowledge.

The stages of the method are functions in `dcr2ad.stages`, the verbs of the command `dcr2ad`, and folders under ``runs/NAME/``.
Importing this package, or running ``dcr2ad --help``, imports no torch.
"""

__version__ = "0.1.0.dev0"
