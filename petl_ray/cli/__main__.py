"""`python -m petl_ray.cli`, the same as `petl-ray`."""

from petl_ray.cli.main import main

main()
