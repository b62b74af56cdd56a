"""The document's lines that need a cluster. Here they are planned; tests/cluster/test_document_cluster.py runs them."""

from __future__ import annotations

ON_CLUSTER = (
    "Examples/1:2",
    "Examples/1:3",
    "NeMo-Run Integration/1:1",
    "NeMo-Run Integration/1:2",
    "Step 6: Run/1:2",
)
