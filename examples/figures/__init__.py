"""The paper's figures, each drawn and measured by one module."""
