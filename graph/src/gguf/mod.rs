//! GGUF files (versions 2 and 3): reading, writing, split files.
