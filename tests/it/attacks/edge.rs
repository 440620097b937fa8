//! Relying parties and networks that attack the public listener.
