"""What a frozen part of a network computes, kept on the disk and read instead."""
