"""What a job will look like before anything runs: batch arithmetic, ZeRO stage, memory, time, what is created. Pure; no torch."""
