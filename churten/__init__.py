"""churten: unchanged Ansible playbooks, many times faster."""

__version__ = "0.1.0"
