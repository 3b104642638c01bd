"""petl-ray: one frozen base, many adapters. Durable pipelines on Ray for parameter-efficient transfer learning."""

__version__ = "0.1.0"
