"""Scripts that run in processes of their own, perhaps in an environment that labkit is not in.

They import nothing of labkit. Each reads `job.json` in the folder it is given, and writes
`result.json` there.
"""
