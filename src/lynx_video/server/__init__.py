"""The service: an HTTP API in the OpenAI video shape before a queue of jobs, and workers that each hold one model.

routes -> desk (checks) -> jobs (the queue, in a database) -> worker (makes) -> jobs -> routes
"""
