"""A package of its own, because torch-fidelity installs one of this name, which would hide a folder without this file."""
