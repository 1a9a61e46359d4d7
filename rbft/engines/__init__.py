"""Who answers a prompt about a clip, besides the backbone in this process: servers and batch APIs.

Requests go in, answers come out in any order (`request.py`). `endpoint.py` asks servers with an API
like OpenAI's, `batchfile.py` writes and reads the files of batch APIs; both keep every answer in a
`replay.py` store, from which a result can be had again without any server.
"""
