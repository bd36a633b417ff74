"""The search service over HTTP, for ``scripts/serve.py``: what is asked and answered, who may ask, the page. What computes is
``model/serving``."""
