"""What the tests and benchmarks of cowfs share, and only they.

posix            what every mounted file tree does, as numbered cases
damage           every defect of a pool's metadata that the checker knows, planted
thin_tools       the two generations of thin-provisioning-tools, found or fetched
docker_engine    Docker 20.10, fetched and started
"""
