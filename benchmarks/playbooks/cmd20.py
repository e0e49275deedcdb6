"""pyinfra's deploy for cmd20.yml."""

from pyinfra.operations import server

for number in range(1, 21):
    server.shell(name=f"Command {number}", commands=["/bin/true"])
