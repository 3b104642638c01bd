"""How the same sweep is done without the project: transformers, PEFT and Ray Tune as their own pages show them."""
