"""Model definitions: plain torch modules and the dataclasses of sizes that they are built from."""
