"""The tamper audit: was refusal edited out of a checkpoint, compared with the one it is said to come from?"""
