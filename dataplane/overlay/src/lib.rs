//! Overlay tables, anti-spoof, encapsulation, decapsulation, segmentation
