"""How RocksDB keeps the store of opaque rows: its memory, its log and its files, each with a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import rocksdict

WRITE_BUFFER_SIZE: Final = 16 << 20  # of one namespace
WRITE_BUFFERS_SIZE: Final = 64 << 20  # of all together
WAL_SIZE_MAX: Final = 128 << 20  # read again at a start after a crash
BLOOM_BITS: Final = 10  # of a key: one absent key in a hundred costs a read of the disk
OPEN_FILES_MAX: Final = 512


def rocksdb_options(cache_bytes: int) -> rocksdict.Options:
    """The options of every store. Args: cache_bytes: for blocks read from disk, with their indexes and filters."""
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(cache_bytes))
    # Indexes and filters in the cache, so that its bound is the bound of all.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(BLOOM_BITS, False)
    table.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(rocksdict.DBCompressionType.none())  # ciphertext does not get smaller
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.point_in_time())
    options.set_paranoid_checks(True)
    options.set_write_buffer_size(WRITE_BUFFER_SIZE)
    options.set_db_write_buffer_size(WRITE_BUFFERS_SIZE)
    options.set_max_total_wal_size(WAL_SIZE_MAX)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_max_background_jobs(2)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    return options


def open_rocksdb(
    folder: Path, options: rocksdict.Options
) -> tuple[rocksdict.Rdict, dict[bytes, tuple[rocksdict.Rdict, rocksdict.ColumnFamily]]]:
    """The files in a folder, and by namespace where it is read and written."""
    path = str(folder)
    names = rocksdict.Rdict.list_cf(path, options) if (folder / "CURRENT").exists() else []
    db = rocksdict.Rdict(path, options, {name: options for name in names if name != "default"})
    families = {
        bytes.fromhex(name): (db.get_column_family(name), db.get_column_family_handle(name))
        for name in names
        if name != "default"
    }
    return db, families


def store_exists(folder: Path) -> bool:
    """Whether something is stored there, whole or not. Raises: OSError: that cannot be known."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
