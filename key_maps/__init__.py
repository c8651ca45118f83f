"""What is known of models, trainers and adapters, as text: tables, records, and their readers.
Standard library only.
"""

from pathlib import Path

KEY_MAPS = Path(__file__).parent
