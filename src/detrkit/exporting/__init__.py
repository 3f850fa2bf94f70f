"""Export of a model to ONNX, OpenVINO or torch.export: a file is compared with the model before it gets its name.

In the order of the work: `graph.py` records the model, `writers.py` writes it, `gates.py` compares file and model,
`measuring.py` takes AP, latency and memory, `reducing.py` makes INT8 and half precision of it, `report.py` says all of
it; `export.py` is the whole way.
"""

from detrkit.exporting.export import export as export
from detrkit.exporting.report import ExportReport as ExportReport
