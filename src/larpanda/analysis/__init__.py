"""What is measured on reconstructed events, and the tables it is written to."""
