"""The test bed's parts: the engine, the images, the packages, the nodes. Standard library only."""
